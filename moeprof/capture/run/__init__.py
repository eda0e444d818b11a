"""The parent of a run: prepare, schedules, launches, status, resume, studies."""
