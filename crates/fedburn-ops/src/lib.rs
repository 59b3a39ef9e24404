//! Training kernels: convolution, group norm and pooling for burn backends.
