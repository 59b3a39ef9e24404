//! The data sets that can be fetched: where they are published, and what their files must be.
//!
//! Lengths and checksums are those of the tensorflow-datasets 4.9 package (`url_checksums/*.txt`); the second mirror of
//! MNIST and the addresses of Fashion-MNIST are also torchvision's.

/// A data set and how to get it.
pub(super) struct Known {
    /// The name in configs and folders.
    pub(super) name: &'static str,
    /// What it is, in a few words.
    pub(super) about: &'static str,
    /// Folders outside the root where a system package puts it.
    pub(super) system: &'static [&'static str],
    /// Folders below its own that may hold it too, as an archive unpacked by hand makes them.
    pub(super) below: &'static [&'static str],
    /// The files that a run reads, each also accepted with `.gz` behind it.
    pub(super) wanted: &'static [&'static str],
    /// Where it comes from.
    pub(super) origin: Origin,
}

/// Where a data set comes from.
pub(super) enum Origin {
    /// Files to download from any of the mirrors (prefixes of addresses).
    Download {
        /// Tried in this order.
        mirrors: &'static [&'static str],
        /// What to download.
        files: &'static [Remote],
        /// What the files are.
        packing: Packing,
    },
    /// Made by a program of others.
    Made {
        /// How to make it and where to put it.
        how: &'static str,
    },
}

/// A published file.
pub(super) struct Remote {
    pub(super) name: &'static str,
    pub(super) bytes: u64,
    /// SHA-256, hexadecimal.
    pub(super) sha256: &'static str,
}

/// What downloaded files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// The wanted files themselves.
    Plain,
    /// An archive of them.
    TarGz,
    /// An archive of them.
    Zip,
}

const fn remote(name: &'static str, bytes: u64, sha256: &'static str) -> Remote {
    Remote { name, bytes, sha256 }
}

const MNIST_FILES: &[&str] =
    &["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];

const LEAF: &str = "LEAF's own scripts download and split it: clone github.com/TalwalkarLab/leaf, run its \
                    data/<name>/preprocess.sh (its README says how), and copy data/train and data/test here";

pub(super) const KNOWN: &[Known] = &[
    Known {
        name: "mnist",
        about: "70,000 handwritten digits, 28x28 grey",
        system: &[],
        below: &[],
        wanted: MNIST_FILES,
        origin: Origin::Download {
            mirrors: &[
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
            ],
            files: &[
                remote(
                    "train-images-idx3-ubyte.gz",
                    9_912_422,
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                ),
                remote(
                    "train-labels-idx1-ubyte.gz",
                    28_881,
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                ),
                remote(
                    "t10k-images-idx3-ubyte.gz",
                    1_648_877,
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                ),
                remote(
                    "t10k-labels-idx1-ubyte.gz",
                    4_542,
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                ),
            ],
            packing: Packing::Plain,
        },
    },
    Known {
        name: "fashion-mnist",
        about: "70,000 pieces of clothing in 10 classes, 28x28 grey",
        system: &["/usr/share/datasets/fashion-mnist"],
        below: &[],
        wanted: MNIST_FILES,
        origin: Origin::Download {
            mirrors: &["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"],
            files: &[
                remote(
                    "train-images-idx3-ubyte.gz",
                    26_421_880,
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                ),
                remote(
                    "train-labels-idx1-ubyte.gz",
                    29_515,
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                ),
                remote(
                    "t10k-images-idx3-ubyte.gz",
                    4_422_102,
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                ),
                remote(
                    "t10k-labels-idx1-ubyte.gz",
                    5_148,
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                ),
            ],
            packing: Packing::Plain,
        },
    },
    Known {
        name: "emnist",
        about: "handwritten digits and letters in five splits, 28x28 grey",
        system: &[],
        below: &[],
        wanted: &[
            "emnist-balanced-train-images-idx3-ubyte",
            "emnist-balanced-train-labels-idx1-ubyte",
            "emnist-balanced-test-images-idx3-ubyte",
            "emnist-balanced-test-labels-idx1-ubyte",
            "emnist-byclass-train-images-idx3-ubyte",
            "emnist-byclass-train-labels-idx1-ubyte",
            "emnist-byclass-test-images-idx3-ubyte",
            "emnist-byclass-test-labels-idx1-ubyte",
            "emnist-bymerge-train-images-idx3-ubyte",
            "emnist-bymerge-train-labels-idx1-ubyte",
            "emnist-bymerge-test-images-idx3-ubyte",
            "emnist-bymerge-test-labels-idx1-ubyte",
            "emnist-digits-train-images-idx3-ubyte",
            "emnist-digits-train-labels-idx1-ubyte",
            "emnist-digits-test-images-idx3-ubyte",
            "emnist-digits-test-labels-idx1-ubyte",
            "emnist-letters-train-images-idx3-ubyte",
            "emnist-letters-train-labels-idx1-ubyte",
            "emnist-letters-test-images-idx3-ubyte",
            "emnist-letters-test-labels-idx1-ubyte",
        ],
        origin: Origin::Download {
            mirrors: &["https://biometrics.nist.gov/cs_links/EMNIST/"],
            files: &[remote(
                "gzip.zip",
                561_753_746,
                "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e",
            )],
            packing: Packing::Zip,
        },
    },
    Known {
        name: "cifar-10",
        about: "60,000 photographs in 10 classes, 32x32 colour",
        system: &[],
        below: &["cifar-10-batches-bin"],
        wanted: &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
            "test_batch.bin",
        ],
        origin: Origin::Download {
            mirrors: &["https://www.cs.toronto.edu/~kriz/"],
            files: &[remote(
                "cifar-10-binary.tar.gz",
                170_052_171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            )],
            packing: Packing::TarGz,
        },
    },
    Known {
        name: "cifar-100",
        about: "60,000 photographs in 100 classes, 32x32 colour",
        system: &[],
        below: &["cifar-100-binary"],
        wanted: &["train.bin", "test.bin"],
        origin: Origin::Download {
            mirrors: &["https://www.cs.toronto.edu/~kriz/"],
            files: &[remote(
                "cifar-100-binary.tar.gz",
                168_513_733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            )],
            packing: Packing::TarGz,
        },
    },
    Known {
        name: "femnist",
        about: "handwritten characters by writer (LEAF), 28x28 grey",
        system: &[],
        below: &[],
        wanted: &["train", "test"],
        origin: Origin::Made { how: LEAF },
    },
    Known {
        name: "shakespeare",
        about: "lines by speaking role (LEAF), next-character prediction",
        system: &[],
        below: &[],
        wanted: &["train", "test"],
        origin: Origin::Made { how: LEAF },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_whole() {
        for known in KNOWN {
            assert!(!known.wanted.is_empty());
            if let Origin::Download { mirrors, files, packing } = &known.origin {
                assert!(mirrors.iter().all(|mirror| mirror.starts_with("http") && mirror.ends_with('/')));
                for file in *files {
                    assert!(file.sha256.len() == 64 && file.sha256.bytes().all(|b| b"0123456789abcdef".contains(&b)));
                }
                if *packing == Packing::Plain {
                    let named: Vec<_> = files.iter().map(|file| file.name.trim_end_matches(".gz")).collect();
                    assert_eq!(named, known.wanted, "each wanted file is downloaded");
                }
            }
        }
    }
}
