"""How much a tenant and a key may use: policies, buckets shared by all routers, back-off."""
