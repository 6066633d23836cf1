"""Models by the names other libraries give them, and callbacks that keep masks held in other libraries'
trainers."""
