"""oneDNN on CPUs: `library` binds its C interface, `calls` lets compiled programs call it."""
