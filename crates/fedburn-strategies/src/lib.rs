//! The server half: aggregation strategies, one file each.
