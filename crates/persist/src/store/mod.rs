//! A sandbox's documents on disk: log, projection, generations.
