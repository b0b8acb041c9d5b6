"""Files on disk and on Cloud Storage: paths, atomic writes, journals, locks, and errors as InputError."""
