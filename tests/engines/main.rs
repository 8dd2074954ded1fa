//! Engines and how they are swapped: real ones (made by `scripts/engines`), and ones that misbehave (`fake.py`).

mod lab;
mod launch;
mod sleep;
mod swap;
