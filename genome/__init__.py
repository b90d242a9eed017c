"""What may vary: search.yml -> search space; vector <-> recipe. Pure: no torch, no files."""
