//! Turns a config file into an assembled run and writes its results: the library and the fedburn binary.
