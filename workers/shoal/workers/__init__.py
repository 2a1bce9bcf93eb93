"""A worker: one Ray actor that owns one device, its own sequences, and its share of every layer's experts."""
