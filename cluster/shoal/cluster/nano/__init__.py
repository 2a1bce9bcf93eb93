"""shoal-nano: a GPT-OSS of a few million parameters that was taught a few things, and how it was taught."""
