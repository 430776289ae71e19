// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
)

// maxWarning is what the API server shows of one warning without complaint.
const maxWarning = 256

// question is the part of an AdmissionReview that we need, pods included: read in one pass, which is
// most of what an answer takes.
type question struct {
	metav1.TypeMeta `json:",inline"`
	Request         *struct {
		UID         types.UID                   `json:"uid"`
		Operation   admissionv1.Operation       `json:"operation"`
		Resource    metav1.GroupVersionResource `json:"resource"`
		SubResource string                      `json:"subResource"`
		Object      *Pod                        `json:"object"`
		OldObject   *Pod                        `json:"oldObject"`
	} `json:"request"`
}

// Mutate answers an AdmissionReview about a new pod. An error means that the body is no such review.
func Mutate(body []byte, policy Policy) ([]byte, error) {
	return review(body, func(operation admissionv1.Operation, pod, _ *Pod) (*admissionv1.AdmissionResponse, error) {
		if operation != admissionv1.Create {
			return allowed(), nil
		}
		normal, warnings, problems := Normalise(*pod, policy)
		if len(problems) > 0 {
			return refused(problems), nil
		}
		answer := allowed()
		for _, warning := range warnings {
			answer.Warnings = append(answer.Warnings, warning[:min(len(warning), maxWarning)])
		}
		return answer, answerPatch(answer, diff(*pod, normal))
	})
}

// Judge answers an AdmissionReview about a pod as it will be stored, new or updated.
func Judge(body []byte) ([]byte, error) {
	return review(body, func(operation admissionv1.Operation, pod, old *Pod) (*admissionv1.AdmissionResponse, error) {
		var problems field.ErrorList
		switch {
		case operation == admissionv1.Create:
			problems = Validate(*pod)
		case operation == admissionv1.Update && old == nil:
			return nil, errNoPod
		case operation == admissionv1.Update:
			problems = Guard(*old, *pod)
		}
		if len(problems) > 0 {
			return refused(problems), nil
		}
		return allowed(), nil
	})
}

var errNoPod = errors.New("an AdmissionReview with no pod in it")

// review takes the envelope off and puts the answer into one.
func review(body []byte,
	decide func(operation admissionv1.Operation, pod, old *Pod) (*admissionv1.AdmissionResponse, error)) ([]byte, error) {
	var asked question
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &asked); err != nil {
		return nil, fmt.Errorf("not an AdmissionReview of a pod: %w", err)
	}
	kind := metav1.TypeMeta{Kind: "AdmissionReview", APIVersion: admissionv1.SchemeGroupVersion.String()}
	request := asked.Request
	switch {
	case asked.TypeMeta != kind:
		return nil, fmt.Errorf("%q of %q is not spoken here; send %s of %s",
			clip(asked.Kind), clip(asked.APIVersion), kind.Kind, kind.APIVersion)
	case request == nil || request.UID == "":
		return nil, errors.New("an AdmissionReview without request or uid")
	case request.Resource.Group != "" || request.Resource.Resource != "pods" || request.SubResource != "":
		return nil, fmt.Errorf("this webhook judges pods, not %q %q", clip(request.Resource.Resource), clip(request.SubResource))
	case request.Object == nil:
		return nil, errNoPod
	}
	answer, err := decide(request.Operation, request.Object, request.OldObject)
	if err != nil {
		return nil, err
	}
	answer.UID = request.UID
	return json.Marshal(admissionv1.AdmissionReview{TypeMeta: kind, Response: answer})
}

func allowed() *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Allowed: true}
}

func refused(problems field.ErrorList) *admissionv1.AdmissionResponse {
	texts := make([]string, 0, len(problems))
	for _, problem := range problems {
		texts = append(texts, problem.Error())
	}
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
		Message: strings.Join(texts, "; "),
	}}
}

func answerPatch(answer *admissionv1.AdmissionResponse, patch []operation) error {
	if len(patch) == 0 {
		return nil
	}
	text, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	kind := admissionv1.PatchTypeJSONPatch
	answer.Patch, answer.PatchType = text, &kind
	return nil
}

func clip(text string) string { return text[:min(len(text), 64)] }
