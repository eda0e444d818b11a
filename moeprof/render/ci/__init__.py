"""A check for regressions as files that other tools read: one file per form, found through ``files.CI_FORMATS``."""
