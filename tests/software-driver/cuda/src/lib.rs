//! Software cuda library for tests.
