"""Text generation: step graphs with a cache that stays where it is."""
