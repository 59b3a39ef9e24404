//! The model zoo: one file per architecture, one enum over them.
