"""Beyond memory and beyond one machine: answers of any number of people, in shards."""
