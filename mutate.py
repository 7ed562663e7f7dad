import subprocess, sys, os, pathlib
root=pathlib.Path('/tmp/mut/pkg/transmamba_mm')
M=[
('distill/losses.py',"shared = similarity.detach().clone()","shared = similarity.clone()"),
('distill/losses.py',"torch.softmax(-similarity / self.tau","torch.softmax(similarity / self.tau"),
('distill/losses.py',"permuted[key] = reorder(unit[index], record.order())","permuted[key] = unit[index]"),
('distill/losses.py',"    tokens = tokens.float()\n","    tokens = tokens\n"),
('distill/losses.py',"key = (index, record.direction, record.grid)","key = (index, record.grid)"),
('distill/losses.py',"int((i + 1) * step + 0.5) - 1","int(i * step)"),
('distill/algorithm.py',"        nn.Module.train(self.teacher, False)\n",""),
('distill/algorithm.py',"        self._forget_records()\n",""),
('distill/algorithm.py',"                module.inplace = False","                pass"),
('distill/algorithm.py',"found[name] = (1 - alpha) * found[name]","found[name] = found[name]"),
('distill/algorithm.py',"        self.teacher._is_init = True\n",""),
('distill/algorithm.py',"1.0 if self.distillation_stopped or not ours else","1.0 if self.distillation_stopped else"),
('distill/algorithm.py',"1.0 if self.distillation_stopped or not ours else","1.0 if not ours else"),
('distill/algorithm.py',"strict=True","strict=False"),
('distill/monitor.py',"with _untouched_randomness(), torch.no_grad():","with torch.no_grad():"),
('distill/monitor.py',"            nn.Module.eval(model)\n",""),
('distill/monitor.py',"                    module.training = mode","                    pass"),
('distill/recorders.py',"            stream = stream.index_select(1, record.order())\n",""),
('distill/records.py',"reorder(maps.flatten(2).mT, order)","maps.flatten(2).mT"),
('distill/records.py',"raster = reorder(self.tokens, invert_order(self.order()))","raster = self.tokens"),
('distill/calibration.py',"index = record.layer * len(self.directions) + place","index = place"),
('distill/calibration.py',"weight = self.fc1.weight[:, : tokens.shape[-1]]","weight = self.fc1.weight[:, -tokens.shape[-1]:]"),
('engine/hooks.py',"        os.replace(temporary, path)","        import shutil; shutil.copyfile(temporary, path); os.unlink(temporary)"),
('engine/hooks.py',"step, get_rank()]","step, 0]"),
('engine/hooks.py',"torch.initial_seed() % 2**32","worker_id"),
('engine/hooks.py',"        self.file_backend = _KeepForNow(backend)\n","        self.file_backend = _KeepForNow(backend); self.file_backend.remove = backend.remove\n"),
('datasets/fraction.py',"count = max(1, int(","count = max(0, int("),
('datasets/fraction.py',"rng.permutation(np.flatnonzero(labels == label))","np.flatnonzero(labels == label)"),
('datasets/digits.py',"stratify=digits.target","stratify=None"),
]
env=dict(os.environ,PYTHONPATH='/tmp/mut/pkg',OMP_NUM_THREADS='1')
for f,a,b in M:
    p=root/f; s=p.read_text()
    if a not in s: print('NOT FOUND',f,a[:50]); continue
    p.write_text(s.replace(a,b,1))
    d={'distill':'test_distill','engine':'test_engine','datasets':'test_datasets'}[f.split('/')[0]]
    r=subprocess.run(['/work/main/.venv/bin/python','-m','pytest','-q','-x','-p','no:cacheprovider',f'/tmp/mut/tests_copy/{d}','--show-capture=no','--tb=no'],env=env,capture_output=True,text=True,cwd='/tmp/mut')
    print('caught ' if r.returncode==1 else f'SURVIVED rc{r.returncode}', f, '|', a.strip()[:60], '|', [l for l in r.stdout.splitlines() if l.startswith('FAILED')][:1], flush=True)
    p.write_text(s)
