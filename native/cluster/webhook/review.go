// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
)

// maxWarning is what the API server shows of one warning without complaint.
const maxWarning = 256

// Mutate answers an AdmissionReview about a new pod. An error means that the body is no such review.
func Mutate(body []byte, policy Policy) ([]byte, error) {
	return review(body, func(request *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
		if request.Operation != admissionv1.Create {
			return allowed(), nil
		}
		pod, err := decodePod(request.Object.Raw)
		if err != nil {
			return nil, err
		}
		normal, warnings, problems := Normalise(pod, policy)
		if len(problems) > 0 {
			return refused(problems), nil
		}
		answer := allowed()
		for _, warning := range warnings {
			answer.Warnings = append(answer.Warnings, warning[:min(len(warning), maxWarning)])
		}
		return answer, answerPatch(answer, diff(pod, normal))
	})
}

// Judge answers an AdmissionReview about a pod as it will be stored, new or updated.
func Judge(body []byte) ([]byte, error) {
	return review(body, func(request *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
		pod, err := decodePod(request.Object.Raw)
		if err != nil {
			return nil, err
		}
		var problems field.ErrorList
		switch request.Operation {
		case admissionv1.Create:
			problems = Validate(pod)
		case admissionv1.Update:
			old, err := decodePod(request.OldObject.Raw)
			if err != nil {
				return nil, err
			}
			problems = Guard(old, pod)
		}
		if len(problems) > 0 {
			return refused(problems), nil
		}
		return allowed(), nil
	})
}

// review takes the envelope off and puts the answer into one.
func review(body []byte, decide func(*admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error)) ([]byte, error) {
	var asked admissionv1.AdmissionReview
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &asked); err != nil {
		return nil, fmt.Errorf("not an AdmissionReview: %w", err)
	}
	kind := metav1.TypeMeta{Kind: "AdmissionReview", APIVersion: admissionv1.SchemeGroupVersion.String()}
	if asked.TypeMeta != kind {
		return nil, fmt.Errorf("%q of %q is not spoken here; send %s of %s",
			clip(asked.Kind), clip(asked.APIVersion), kind.Kind, kind.APIVersion)
	}
	request := asked.Request
	if request == nil || request.UID == "" {
		return nil, fmt.Errorf("an AdmissionReview without request or uid")
	}
	if request.Resource.Group != "" || request.Resource.Resource != "pods" || request.SubResource != "" {
		return nil, fmt.Errorf("this webhook judges pods, not %q %q", clip(request.Resource.Resource), clip(request.SubResource))
	}
	answer, err := decide(request)
	if err != nil {
		return nil, fmt.Errorf("not a pod: %w", err)
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
