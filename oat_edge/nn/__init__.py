"""Networks with two run-time knobs: conversion of plain CNNs, and folding them back."""
