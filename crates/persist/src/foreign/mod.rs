//! Files of other Kata versions, recognised by shape.
