// Drives the built page in Chromium, against the real server and real trained models.  Run by `make page-test`.
import "./views.mjs";
import "./sentence.mjs";
import "./training.mjs";
import "./opening.mjs";
import "./models.mjs";
import "./files.mjs";
import "./wheel.mjs";
import "./asking.mjs";
import "./speed.mjs";
