"""Build, verify and time candidates, each in a process that may die without harm."""
