"""Faults themselves, not imitations: files that are cut, limits that are reached, processes that are killed."""
