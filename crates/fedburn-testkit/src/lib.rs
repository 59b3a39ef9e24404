//! Laws, conformance suites, fixtures and golden files for testing fedburn components (development only).
