//! Go's JSON to the byte, and a reader that forgives what is harmless.
