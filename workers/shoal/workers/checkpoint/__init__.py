"""Reading a GPT-OSS checkpoint directory, in either published layout, slice by slice."""
