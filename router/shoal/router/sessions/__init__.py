"""Conversations kept between turns: the seam, Redis behind it, and the calls that show them."""
