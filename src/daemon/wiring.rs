//! Which engine goes where and with what: placement, the GPU server, and one worker a model. Nothing is started here
//! but the GPU server.
