"""What a search found, for people: tables for the terminal, pictures and a page for the browser."""
