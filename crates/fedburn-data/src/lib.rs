//! Labelled examples, views of them per client, and partitioners that split them.
