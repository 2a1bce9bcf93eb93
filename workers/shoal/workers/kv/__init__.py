"""Who owns which KV block: two pools, reference counts, and the prefix cache over them."""
