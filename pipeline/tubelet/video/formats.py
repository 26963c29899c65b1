"""The container formats that FFmpeg may recognise here."""

from __future__ import annotations

import av

# Pictures, one after another or alone. FFmpeg calls the readers of single pictures pipes.
PICTURES = frozenset(
    {name for name in av.formats_available if name.endswith("_pipe")}
    - {"svg_pipe", "xbm_pipe", "xpm_pipe", "cri_pipe", "vbn_pipe", "gem_pipe", "txd_pipe"}
)
_VIDEO = (
    "asf", "avi", "flv", "live_flv", "kux", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "mpeg", "mpegts",
    "mxf", "nut", "ogg", "rm", "ivr", "dv", "gxf", "lxf", "wtv", "ty", "pva", "pmp", "nsv", "nuv", "swf",
    "r3d", "cine", "dhav", "mlv", "mgsts", "ser", "ifv", "iv8", "lmlm4", "luodat", "vivo", "amv",
    "yuv4mpegpipe", "ivf", "obu", "av1", "h261", "h263", "h264", "hevc", "vvc", "evc", "m4v", "mpegvideo",
    "mjpeg", "mjpeg_2000", "smjpeg", "vc1", "vc1test", "dirac", "dnxhd", "cavsvideo", "avs2", "avs3",
    "apv", "gif", "apng", "jpegxl_anim", "flic", "film_cpk", "bink", "smk", "roq", "4xm", "ea", "idcin",
    "rpl", "mtv", "mv", "thp", "xmv", "moflex", "bfi", "bmv", "cdxl", "hnm", "ipmovie", "rl2", "vmd",
    "wc3movie", "usm", "psxstr", "yop", "smush", "avs", "filmstrip", "fits",
)  # fmt: skip
# Known by their sound, so that they are told from broken videos.
_AUDIO = (
    "aac", "ac3", "ac4", "aiff", "amr", "ape", "au", "caf", "dsf", "dts", "dtshd", "eac3", "flac", "iff",
    "mp3", "mpc", "mpc8", "oma", "qcp", "tak", "truehd", "tta", "voc", "w64", "wav", "wv", "xwma",
)  # fmt: skip

# Left out on purpose: what opens further files or addresses (playlists, image sequences, AviSynth), devices,
# what shows text as pictures (tty and its like), headerless samples that anything passes for, subtitles.
ALLOWED = frozenset(_VIDEO) | frozenset(_AUDIO) | PICTURES
