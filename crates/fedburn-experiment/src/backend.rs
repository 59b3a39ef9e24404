//! From a backend's name to a call with its type: the one `match` over backends.

use std::fmt;
use std::str::FromStr;

use fedburn::ops::Kernels;
use thiserror::Error;

/// Work that is generic over the backend.
pub trait BackendJob {
    /// What it yields.
    type Output;
    /// Does it on one backend.
    fn run<B: Kernels>(self, device: B::Device) -> Self::Output;
}

/// A backend by name. All names are known to every build; [`BackendName::run`] says how to build one that is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendName {
    /// burn-flex: pure Rust on the CPU, the default.
    #[default]
    Flex,
    /// burn-ndarray: pure Rust on the CPU.
    Ndarray,
    /// burn-cuda: NVIDIA GPUs.
    Cuda,
    /// burn-wgpu: any GPU with Vulkan, Metal or DirectX 12.
    Wgpu,
    /// burn-tch: libtorch.
    Tch,
}

/// A backend that cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BackendError {
    /// There is no backend of this name.
    #[error("unknown backend `{name}`, expected one of {}", BackendName::ALL.map(BackendName::as_str).join(", "))]
    Unknown {
        /// The name.
        name: String,
    },
    /// The program was built without it.
    #[error(
        "backend `{name}` is not in this build; build with `--features {name}` (`cargo xtask experiment run … --backend {name}` does)"
    )]
    NotBuilt {
        /// The backend.
        name: BackendName,
    },
    /// The machine lacks what it needs.
    #[error("backend `{name}` cannot run on this machine: {reason}; use `--backend flex` to run on the CPU")]
    Unavailable {
        /// The backend.
        name: BackendName,
        /// What is missing.
        reason: String,
    },
}

impl BackendName {
    /// Every backend.
    pub const ALL: [Self; 5] = [Self::Flex, Self::Ndarray, Self::Cuda, Self::Wgpu, Self::Tch];

    /// The name in commands.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Ndarray => "ndarray",
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
            Self::Tch => "tch",
        }
    }

    /// Whether an allocator of this program sees all that the backend takes.
    pub fn allocates_here(self) -> bool {
        matches!(self, Self::Flex | Self::Ndarray)
    }

    /// Runs a job on this backend's default device.
    ///
    /// # Errors
    /// [`BackendError`], before any call into the backend, where the build or the machine lacks it.
    pub fn run<J: BackendJob>(self, job: J) -> Result<J::Output, BackendError> {
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => Ok(job.run::<burn_flex::Flex>(Default::default())),
            #[cfg(feature = "ndarray")]
            Self::Ndarray => Ok(job.run::<burn_ndarray::NdArray>(Default::default())),
            #[cfg(feature = "cuda")]
            Self::Cuda => {
                probe_cuda()?;
                Ok(job.run::<burn_cuda::Cuda>(Default::default()))
            }
            #[cfg(feature = "wgpu")]
            Self::Wgpu => {
                probe_wgpu()?;
                Ok(job.run::<burn_wgpu::Wgpu>(Default::default()))
            }
            #[cfg(feature = "tch")]
            Self::Tch => Ok(job.run::<burn_tch::LibTorch>(Default::default())),
            #[allow(unreachable_patterns, reason = "which backends are left depends on the features")]
            name => Err(not_here(name)),
        }
    }
}

/// Why a backend that is not in this build cannot be used: what the machine lacks comes before what the build lacks,
/// because building would not help.
fn not_here(name: BackendName) -> BackendError {
    match name {
        BackendName::Cuda => probe_cuda().err().unwrap_or(BackendError::NotBuilt { name }),
        _ => BackendError::NotBuilt { name },
    }
}

/// Whether an NVIDIA driver and a GPU are there. burn panics where they are not, so this asks the driver library
/// before any burn call.
fn probe_cuda() -> Result<(), BackendError> {
    let unavailable = |reason: &str| BackendError::Unavailable { name: BackendName::Cuda, reason: reason.to_owned() };
    let library = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
    type Init = unsafe extern "C" fn(u32) -> i32;
    type DeviceCount = unsafe extern "C" fn(*mut i32) -> i32;
    #[expect(unsafe_code, reason = "the driver is a C library; these two calls have had these signatures since CUDA 2")]
    let devices = unsafe {
        let driver = libloading::Library::new(library)
            .map_err(|_| unavailable(&format!("the NVIDIA driver library {library} was not found")))?;
        let init: libloading::Symbol<'_, Init> =
            driver.get(b"cuInit\0").map_err(|_| unavailable("the NVIDIA driver library lacks cuInit"))?;
        let count: libloading::Symbol<'_, DeviceCount> = driver
            .get(b"cuDeviceGetCount\0")
            .map_err(|_| unavailable("the NVIDIA driver library lacks cuDeviceGetCount"))?;
        let mut devices = 0;
        if init(0) != 0 || count(&mut devices) != 0 {
            return Err(unavailable(
                "the NVIDIA driver did not start (is a GPU attached and its kernel module loaded?)",
            ));
        }
        devices
    };
    if devices > 0 { Ok(()) } else { Err(unavailable("no CUDA device was found")) }
}

/// Whether wgpu finds an adapter. burn panics where there is none, in a thread of its own.
#[cfg(feature = "wgpu")]
fn probe_wgpu() -> Result<(), BackendError> {
    use burn::tensor::Tensor;
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let probe = std::panic::catch_unwind(|| Tensor::<burn_wgpu::Wgpu, 1>::zeros([1], &Default::default()).into_data());
    std::panic::set_hook(hook);
    let reason = "no graphics adapter was found (a software one is in Debian's mesa-vulkan-drivers)".to_owned();
    probe.map(drop).map_err(|_| BackendError::Unavailable { name: BackendName::Wgpu, reason })
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for BackendName {
    type Err = BackendError;

    fn from_str(name: &str) -> Result<Self, BackendError> {
        Self::ALL
            .into_iter()
            .find(|b| b.as_str() == name)
            .ok_or_else(|| BackendError::Unknown { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Name;

    impl BackendJob for Name {
        type Output = String;
        fn run<B: Kernels>(self, device: B::Device) -> String {
            B::name(&device)
        }
    }

    #[test]
    fn names_round_trip_and_unknown_ones_list_the_known() {
        for name in BackendName::ALL {
            assert_eq!(name.as_str().parse(), Ok(name));
        }
        let error = "gpu".parse::<BackendName>().unwrap_err().to_string();
        assert!(error.contains("`gpu`") && error.contains("flex, ndarray, cuda, wgpu, tch"), "{error}");
    }

    #[test]
    fn cpu_backends_run() {
        assert!(BackendName::Flex.run(Name).unwrap().contains("flex"));
        assert!(BackendName::Ndarray.run(Name).unwrap().contains("ndarray"));
    }

    #[test]
    fn without_a_driver_cuda_is_an_error_that_says_what_to_do() {
        if std::path::Path::new("/dev/nvidia0").exists() {
            eprintln!("a GPU is attached: nothing to refuse");
            return;
        }
        let error = BackendName::Cuda.run(Name).unwrap_err();
        assert!(matches!(error, BackendError::Unavailable { name: BackendName::Cuda, .. }));
        assert!(error.to_string().contains("--backend flex"), "{error}");
    }
}
