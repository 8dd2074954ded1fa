//! Whether the models can ever fit: into the config's own budgets, and into the job where it is known.

use crate::{
    config::{
        Limits,
        mistake::{Code, Mistake},
        plan::MemoryPlan,
        raw::File,
        reader::At,
        resolve::{self, Draft},
        values::Size,
    },
    units::Bytes,
};

pub(super) fn check(file: &File, drafts: &[Draft], limits: Option<&Limits>, mistakes: &mut Vec<Mistake>) {
    let memory = resolve::memory(file);
    let gpus = Gpus::new(&memory, limits);
    let host = host_capacity(&memory, limits);
    budgets(file, limits, mistakes);
    let pool = pool(file, drafts, &gpus, &memory, host, mistakes);
    let host = host.map(|host| host.saturating_sub(pool));
    for draft in drafts {
        gpu_count(draft, limits, mistakes);
        gpu_memory(draft, &gpus, mistakes);
        host_memory(draft, host, pool, mistakes);
    }
    pinned(drafts, &gpus, host, mistakes);
}

/// What engines may take of the GPUs.
struct Gpus {
    /// The largest GPU's share, where anything is known.
    largest: Option<Bytes>,
    /// All GPUs' shares together, where the job is known.
    together: Option<Bytes>,
}

impl Gpus {
    fn new(memory: &MemoryPlan, limits: Option<&Limits>) -> Self {
        let budget = memory.gpu_budget;
        let shares = limits.map(|limits| {
            let share =
                |total: &Bytes| total.saturating_sub(memory.gpu_headroom).min(budget.unwrap_or(*total));
            limits.gpus.iter().map(share).collect::<Vec<_>>()
        });
        Gpus {
            largest: shares.as_ref().map_or(budget, |shares| shares.iter().max().copied()),
            together: shares.map(|shares| shares.into_iter().sum()),
        }
    }
}

/// What engines may take of the host's memory, where it is known.
fn host_capacity(memory: &MemoryPlan, limits: Option<&Limits>) -> Option<Bytes> {
    let job = limits.and_then(|limits| limits.host).map(|total| total.saturating_sub(memory.host_headroom));
    [memory.host_budget, job].into_iter().flatten().min()
}

/// The pool, where the config says how large it is and one will be made. One that is too large has a message and counts no more.
fn pool(
    file: &File,
    drafts: &[Draft],
    gpus: &Gpus,
    memory: &MemoryPlan,
    host: Option<Bytes>,
    mistakes: &mut Vec<Mistake>,
) -> Bytes {
    let has_gpu = gpus.together.is_none_or(|together| !together.is_zero());
    let made = has_gpu && drafts.iter().any(|draft| draft.plan.may_be_parked());
    let Some(pool) = memory.pool.filter(|_| made) else { return Bytes(0) };
    let Some(host) = host.filter(|host| pool > *host) else { return pool };
    let message = format!("`pool` is {pool}, and engines may take {host} of host memory");
    let help = "it is pinned when the run begins and given back at its end: leave it out, or ask Slurm for more with --mem";
    let place = file.memory.as_ref().and_then(|section| section.value.pool.as_ref());
    mistakes.push(never_fits(place.map(|at| at.span.clone()).unwrap_or_default(), message, help));
    Bytes(0)
}

fn never_fits(place: std::ops::Range<usize>, message: String, help: impl Into<String>) -> Mistake {
    Mistake::at(place, Code::NeverFits, message, help)
}

/// Budgets beyond what the job has.
fn budgets(file: &File, limits: Option<&Limits>, mistakes: &mut Vec<Mistake>) {
    let (Some(memory), Some(limits)) = (&file.memory, limits) else { return };
    let mut over = |key: &str, size: &Option<At<Size>>, total: Option<Bytes>, what: &str| {
        let Some((size, total)) = size.as_ref().zip(total).filter(|(size, total)| size.value.0 > *total)
        else {
            return;
        };
        let message = format!("`{key}` is {}, but {what} has {total}", size.value.0);
        mistakes.push(never_fits(size.span.clone(), message, "leave it out to use what the job has"));
    };
    let largest = limits.gpus.iter().max().copied();
    over("gpu_budget", &memory.value.gpu_budget, largest, "the job's largest GPU");
    over("gpu_headroom", &memory.value.gpu_headroom, largest, "the job's largest GPU");
    over("host_budget", &memory.value.host_budget, limits.host, "the job");
    over("host_headroom", &memory.value.host_headroom, limits.host, "the job");
}

fn gpu_count(draft: &Draft, limits: Option<&Limits>, mistakes: &mut Vec<Mistake>) {
    let Some(has) = limits.map(|limits| limits.gpus.len()) else { return };
    let wants = draft.plan.gpus;
    if wants as usize > has {
        let many = |n: usize| if n == 1 { "1 GPU".to_owned() } else { format!("{n} GPUs") };
        let message =
            format!("{} needs {}, and the job has {}", draft.plan.name, many(wants as usize), many(has));
        let help = format!("ask Slurm for them: --gpus={wants}; or set gpus = {has}");
        mistakes.push(Mistake::at(draft.place(&draft.raw.gpus), Code::MissingGpu, message, help));
    }
}

fn gpu_memory(draft: &Draft, gpus: &Gpus, mistakes: &mut Vec<Mistake>) {
    let Some((wants, has)) = draft.plan.gpu_memory.zip(gpus.largest) else { return };
    if wants > has {
        let message =
            format!("{} wants {wants} of a GPU, and engines may take {has} of one", draft.plan.name);
        let help = "lower its gpu_memory, spread it with gpus = 2, or ask for a larger GPU";
        mistakes.push(never_fits(draft.place(&draft.raw.gpu_memory), message, help));
    }
}

fn host_memory(draft: &Draft, host: Option<Bytes>, pool: Bytes, mistakes: &mut Vec<Mistake>) {
    let Some((wants, has)) = draft.plan.host_memory.zip(host) else { return };
    if wants > has {
        let mut message =
            format!("{} wants {wants} of host memory, and engines may take {has}", draft.plan.name);
        let mut help = "ask Slurm for more with --mem, or lower host_headroom".to_owned();
        if !pool.is_zero() {
            message += &format!(" beside the pool of {pool}");
            help += " or the pool";
        }
        mistakes.push(never_fits(draft.place(&draft.raw.host_memory), message, help));
    }
}

/// Pinned models leave too little for one another, or for a model that has to take turns.
fn pinned(drafts: &[Draft], gpus: &Gpus, host: Option<Bytes>, mistakes: &mut Vec<Mistake>) {
    let on_gpus = |draft: &Draft| {
        draft.plan.gpu_memory.map(|each| Bytes(each.0.saturating_mul(draft.plan.gpus.into())))
    };
    let on_host = |draft: &Draft| draft.plan.host_memory;
    one_resource(drafts, on_gpus, gpus.together, "GPU memory", mistakes);
    one_resource(drafts, on_host, host, "host memory", mistakes);
}

fn one_resource(
    drafts: &[Draft],
    wants: impl Fn(&Draft) -> Option<Bytes>,
    has: Option<Bytes>,
    what: &str,
    mistakes: &mut Vec<Mistake>,
) {
    let Some(has) = has else { return };
    let pinned: Vec<_> = drafts.iter().filter(|draft| draft.plan.pin && wants(draft).is_some()).collect();
    let held: Bytes = pinned.iter().filter_map(|draft| wants(draft)).sum();
    let Some(last) = pinned.last() else { return };
    if held > has {
        // One that is alone too large has its own message.
        if pinned.len() > 1 {
            let names = pinned.iter().map(|draft| draft.plan.name.as_str()).collect::<Vec<_>>().join(", ");
            let message =
                format!("the pinned models {names} want {held} of {what} together, and there are {has}");
            let help = "pin fewer of them: the others are swapped in when they are asked for";
            mistakes.push(never_fits(last.place(&last.raw.pin), message, help));
        }
        return;
    }
    for draft in drafts.iter().filter(|draft| !draft.plan.pin) {
        let Some(want) = wants(draft).filter(|want| *want <= has && held + *want > has) else { continue };
        let message = format!(
            "{} wants {want} of {what}, and the pinned models leave {}",
            draft.plan.name,
            has.saturating_sub(held)
        );
        let help = "it could never be swapped in; pin fewer models, or lower its memory";
        let place =
            draft.place(if what.starts_with("GPU") { &draft.raw.gpu_memory } else { &draft.raw.host_memory });
        let mistake = never_fits(place, message, help);
        mistakes.push(mistake.and(last.place(&last.raw.pin), "pinned here"));
    }
}
