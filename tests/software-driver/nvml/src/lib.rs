//! Software nvml library for tests.
