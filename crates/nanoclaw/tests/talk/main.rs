//! `chat` through the real binary.
