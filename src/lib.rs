//! swapserve
