//! A monitor without a machine, for tests; see `coracle_vmm::fake`.

fn main() -> std::process::ExitCode {
    coracle_vmm::fake::run(std::env::args().skip(1))
}
