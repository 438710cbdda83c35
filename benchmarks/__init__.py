"""How fast this project is beside what people would use instead: ``make bench``."""
