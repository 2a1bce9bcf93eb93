"""What routers share of the work that was done: answers that cannot differ, and who has which prompt's beginning."""
