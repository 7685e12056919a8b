//! Placeholder head; the owner of the crate writes the prose.
