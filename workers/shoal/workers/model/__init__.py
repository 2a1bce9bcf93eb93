"""The mathematics of GPT-OSS on top of the kernels."""
