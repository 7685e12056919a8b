//! Which accelerator runs guest code.
