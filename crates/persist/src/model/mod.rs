//! Every type and member of the persist API, with Go's zero as its default.
