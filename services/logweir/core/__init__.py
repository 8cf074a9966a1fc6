"""The pure part: values, formats and decisions. Nothing here awaits, reads a clock or logs."""
