"""What runs in the environments of a storm: a function for each strategy. Imported there, and by no other module."""
