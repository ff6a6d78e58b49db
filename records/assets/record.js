"use strict";
// The page of one record: its losses, beside those of the record that it builds on.
const state = readState(CURVES);
const {series} = JSON.parse($("data").textContent);
const picked = series.map((one, slot) => ({series: one, slot}));

function redraw() {
  if (picked.some(({series}) => series.curves.length)) drawLosses(picked, state, changed);
  else $("losses").hidden = true;
}

function changed() {
  writeState(state, CURVES);
  redraw();
}

startTheme(redraw);
startCurves(state, changed);
redraw();
