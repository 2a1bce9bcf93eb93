"""What both ends of a wire share: registry records, errors to status, deadlines."""
