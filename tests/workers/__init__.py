"""Tests of the worker: model, engine, experts, stream."""
